"""Tabletop: a fast family of simulated manipulation tasks made of MuJoCo primitives."""
