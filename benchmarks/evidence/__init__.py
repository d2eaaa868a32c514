"""Methods compared at equal terms: a list of simulated runs in order of worth, and the table of those that are done."""
