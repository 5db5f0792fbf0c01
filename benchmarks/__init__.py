"""Speed and memory, side by side with the frameworks. `make bench`, `make bench-gpu`."""
