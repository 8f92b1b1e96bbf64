//! The descriptors of every message in this crate, for JSON and for reflection.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MessageDescriptor};

static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin")).as_slice())
        .expect("the build script wrote a descriptor set that it had just checked")
});

/// All descriptors. Decoded at first use (some milliseconds and a few MiB), so programs on a small footprint should not ask
/// for it on their way up.
pub fn pool() -> &'static DescriptorPool {
    &POOL
}

/// The descriptor of the message with this full name (`istio.networking.v1alpha3.Gateway`).
#[must_use]
pub fn message(full_name: &str) -> Option<MessageDescriptor> {
    POOL.get_message_by_name(full_name)
}
