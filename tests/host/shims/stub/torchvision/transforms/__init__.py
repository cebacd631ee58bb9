"""No transform: nothing that our tests run calls one."""
