"""Who is asking: from a bearer secret to a principal."""
