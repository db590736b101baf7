"""The contracts of Inferbus: topics, messages, and the pure code that defines their meaning."""
