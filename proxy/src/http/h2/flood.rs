//! Frames that cost us more than their sender: how many there may be, as Envoy counts them.

use super::Reason;

/// When a peer's frames are too many (`Http2ProtocolOptions`).
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloodLimits {
    /// Answers to the peer that wait to go out (`max_outbound_control_frames`).
    pub(crate) answers: u32,
    /// Frames in a row that bring nothing (`max_consecutive_inbound_frames_with_empty_payload`).
    pub(crate) empty: u32,
    /// PRIORITY for each stream (`max_inbound_priority_frames_per_stream`).
    pub(crate) priorities: u32,
    /// WINDOW_UPDATE for each frame of data that was sent (`max_inbound_window_update_frames_per_data_frame_sent`).
    pub(crate) window_updates: u32,
}

impl FloodLimits {
    /// Envoy's, unless others are configured.
    pub(crate) const USUAL: Self = Self {
        answers: 1000,
        empty: 1,
        priorities: 100,
        window_updates: 10,
    };
}

/// What there was so far.
#[derive(Debug, Default)]
pub(super) struct Flood {
    pub(super) answers: u32,
    pub(super) data_sent: u64,
    pub(super) opened: u64,
    empty: u32,
    priorities: u64,
    window_updates: u64,
}

impl Flood {
    /// A frame of a stream's message came: whether it brought nothing at all.
    pub(super) fn message(&mut self, is_empty: bool, limits: &FloodLimits) -> Result<(), Reason> {
        self.empty = if is_empty { self.empty + 1 } else { 0 };
        within(self.empty.into(), limits.empty.into())
    }

    pub(super) fn priority(&mut self, limits: &FloodLimits) -> Result<(), Reason> {
        self.priorities += 1;
        within(
            self.priorities,
            u64::from(limits.priorities) * (1 + self.opened),
        )
    }

    pub(super) fn window_update(&mut self, limits: &FloodLimits) -> Result<(), Reason> {
        self.window_updates += 1;
        let most = 5 + 2 * (self.opened + u64::from(limits.window_updates) * self.data_sent);
        within(self.window_updates, most)
    }

    /// Whether too many answers wait.
    pub(super) fn answers(&self, limits: &FloodLimits) -> Result<(), Reason> {
        within(self.answers.into(), limits.answers.into())
    }
}

fn within(count: u64, most: u64) -> Result<(), Reason> {
    if count > most {
        Err(Reason::ENHANCE_YOUR_CALM)
    } else {
        Ok(())
    }
}
