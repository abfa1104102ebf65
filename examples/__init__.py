"""Programs to start from, each a file that reads in one go; two applications in folders."""
