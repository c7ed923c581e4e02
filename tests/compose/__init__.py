"""A cluster on a Docker engine, brought up and used as a person would."""
