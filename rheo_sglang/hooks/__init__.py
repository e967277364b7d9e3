"""Hooks: what rheo changes of SGLang, by what of SGLang they change."""
