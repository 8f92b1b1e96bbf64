//! proto-mcp.
