"""The methods that `simulate` compares, one file each, named after the paper."""
