"""The methods that ship with timm-robust, one folder each; README.md says how to add one."""
