//! Progress bars on a terminal; lines now and then elsewhere.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

pub(crate) struct Bars(MultiProgress);

impl Bars {
    pub(crate) fn new(bars: MultiProgress) -> Bars {
        if !std::io::stderr().is_terminal() {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Bars(bars)
    }

    /// A bar of this many, with its rate.
    pub(crate) fn bar(&self, name: &'static str, total: u64) -> ProgressBar {
        let style = "{prefix:>9} {wide_bar} {human_pos:>10} / {human_len} {per_sec:>14}";
        self.0.add(
            ProgressBar::new(total)
                .with_prefix(name)
                .with_style(ProgressStyle::with_template(style).expect("the template is valid")),
        )
    }

    pub(crate) fn clear(&self) {
        // What cannot be cleared is a terminal that went away.
        self.0.clear().unwrap_or_else(|error| tracing::debug!(%error, "clear the bars"));
    }
}
