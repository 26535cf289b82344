"""What a process needs of its machine: the home folder, open files, sockets, child processes, signals."""
