//! galley.
