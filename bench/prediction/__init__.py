"""Times predicted from machine code, where there is no GPU to measure: `python -m bench --predict`."""
