"""Input files → splits → documents, without Ray."""
