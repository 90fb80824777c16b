//! GGUF containers: reading, writing, the tile layout.
