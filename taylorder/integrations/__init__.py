"""taylorder inside other people's tools: what they call, in their words."""
