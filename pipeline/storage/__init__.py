"""Files wherever they are: listing, atomic output, the records of runs, the hub, downloads."""
