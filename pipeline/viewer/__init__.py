"""A page that shows the patches of what one types, and of the documents of shard sets."""
