"""The command line and what only it needs: data sets, pictures, reports."""
