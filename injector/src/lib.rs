//! injector.
