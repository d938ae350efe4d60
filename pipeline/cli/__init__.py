"""What commands share: running a job, telling errors, printing results, progress in one process."""
