//! injector-capture.
