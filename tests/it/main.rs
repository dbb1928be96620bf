//! What the store promises, tried through its library and its program.
