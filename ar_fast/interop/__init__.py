"""Models made from modules of other libraries, one file for each library."""
