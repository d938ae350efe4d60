"""All of Ray that jobs share: joining a cluster, stages of work, progress."""
