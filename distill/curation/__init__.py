"""Filter and change traces before training. A curation step is a function with a YAML file in
`conf/curation/`."""
