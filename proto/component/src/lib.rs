//! proto-component.
