"""The commands: parse, call one function, print one closing line."""
