"""A Hub on loopback for tests and developers, and the tests of it."""
