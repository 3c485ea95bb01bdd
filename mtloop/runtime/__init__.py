"""The device and the ranks of a run. Every other module takes a Runtime and never asks accelerate itself."""
