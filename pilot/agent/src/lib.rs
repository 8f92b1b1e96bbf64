//! pilot-agent.
