//! proto-mesh.
