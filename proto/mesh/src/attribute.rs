//! Attributes: what is known of a request, under names of a fixed vocabulary.
