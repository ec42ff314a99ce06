"""ernie-serve with the software that people use with such servers, each in an environment of its own.

`make clients` makes the environments under CLIENTS, starts two servers and runs a script for each client, which says
of each thing that it tried whether it worked. The table goes to a Markdown file; a thing that should work and does not
ends with exit code 1.

    clients.py      the clients: requirements, script, versions
    environments.py virtual environments and node_modules, made once for each set of requirements
    probe.py        what the scripts say their results with
    run.py          runs a script
    results.py      results, and the table
    __main__.py     the command
    python/, node/  a script and the exact requirements of each client
"""
