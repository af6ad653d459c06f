"""Django for the tests: a project of its own in each process, on the database of one stack."""
