"""The commands: ``add_arguments`` declares the options of each, ``run`` returns its exit code."""
