"""The language of coordinator and agents: messages, topics, tensors, codings, subnetworks, transfer."""
