"""What is made of modules of other libraries, one file each."""
