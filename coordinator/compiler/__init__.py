"""ModelSpec → training graph → LiteRT flatbuffer, in plain Python: no TensorFlow, builtin operators only."""
