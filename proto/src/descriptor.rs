//! The descriptors of every message in this crate, for JSON and for reflection; and those of all that Envoy can be configured
//! with, for what users write into an EnvoyFilter. There are three pools, as a pool costs memory for good: a program that never
//! reads one of Envoy's messages as JSON has the smallest one only.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MessageDescriptor};

/// All messages but Envoy's.
static OWN: LazyLock<DescriptorPool> =
    LazyLock::new(|| decode(include_bytes!(concat!(env!("OUT_DIR"), "/own.bin"))));

/// All messages of this crate.
static POOL: LazyLock<DescriptorPool> =
    LazyLock::new(|| decode(include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"))));

/// All messages of this crate, and every extension of Envoy.
static EXTENSIONS: LazyLock<DescriptorPool> =
    LazyLock::new(|| decode(include_bytes!(concat!(env!("OUT_DIR"), "/extensions.bin"))));

fn decode(set: &[u8]) -> DescriptorPool {
    DescriptorPool::decode(set)
        .expect("the build script wrote a descriptor set that it had just checked")
}

/// The descriptor of the message with this full name (`istio.networking.v1alpha3.Gateway`). The first question decodes what it
/// needs (some milliseconds and MiB, most of them for Envoy's messages), so programs on a small footprint should not ask on
/// their way up.
#[must_use]
pub fn message(full_name: &str) -> Option<MessageDescriptor> {
    OWN.get_message_by_name(full_name)
        .or_else(|| POOL.get_message_by_name(full_name))
}

/// As [`message`], with every extension of Envoy known: also inside of an `Any`.
#[must_use]
pub fn extension(full_name: &str) -> Option<MessageDescriptor> {
    EXTENSIONS.get_message_by_name(full_name)
}
