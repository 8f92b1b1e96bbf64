//! The descriptors of every message in this crate, for JSON and for reflection; and those of all that Envoy can be configured
//! with, for what users write into an EnvoyFilter.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MessageDescriptor};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin")).as_slice())
        .expect("the build script wrote a descriptor set that it had just checked")
});

/// A pool of its own, because few programs ever look at it.
static EXTENSIONS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/extensions.bin")).as_slice())
        .expect("the build script wrote a descriptor set that it had just checked")
});

/// All descriptors. Decoded at first use (some milliseconds and a few MiB), so programs on a small footprint should not ask
/// for it on their way up.
pub fn pool() -> &'static DescriptorPool {
    &POOL
}

/// The descriptors of [`pool`] and of every extension of Envoy, whether there are Rust types for it or not.
pub fn extensions() -> &'static DescriptorPool {
    &EXTENSIONS
}

/// The descriptor of the message with this full name (`istio.networking.v1alpha3.Gateway`).
#[must_use]
pub fn message(full_name: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(full_name)
}

/// As [`message`], with every extension of Envoy known: also inside of an `Any`.
#[must_use]
pub fn extension(full_name: &str) -> Option<MessageDescriptor> {
    EXTENSIONS.get_message_by_name(full_name)
}
