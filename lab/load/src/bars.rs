//! Progress bars on a terminal; a line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::Duration;

use indicatif::{HumanCount, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between two lines where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub struct Bars {
    bars: MultiProgress,
    terminal: bool,
    made: Mutex<Vec<ProgressBar>>,
}

impl Bars {
    pub fn new(bars: MultiProgress) -> Bars {
        let terminal = std::io::stderr().is_terminal();
        if !terminal {
            bars.set_draw_target(ProgressDrawTarget::hidden());
        }
        Bars { bars, terminal, made: Mutex::default() }
    }

    /// A bar of this many, with its rate.
    pub fn bar(&self, name: &'static str, total: u64) -> ProgressBar {
        let style = "{prefix:>9} {wide_bar} {human_pos:>10} / {human_len} {per_sec:>14}";
        let bar = self.bars.add(
            ProgressBar::new(total)
                .with_prefix(name)
                .with_style(ProgressStyle::with_template(style).expect("the template is valid")),
        );
        self.made.lock().expect("no holder panics").push(bar.clone());
        bar
    }

    /// A line above the bars.
    pub fn say(&self, line: &str) {
        if self.terminal && self.bars.println(line).is_ok() {
            return;
        }
        eprintln!("{line}");
    }

    /// Runs `work`; where there is no terminal, says now and then how far the bars are.
    pub async fn beside<T>(&self, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = tokio::time::sleep(LINE_INTERVAL), if !self.terminal => {
                    eprintln!("{}", self.line());
                }
            }
        }
    }

    fn line(&self) -> String {
        let made = self.made.lock().expect("no holder panics");
        let one = |bar: &ProgressBar| {
            let (at, of) =
                (HumanCount(bar.position()), HumanCount(bar.length().unwrap_or(bar.position())));
            format!("{} {at} of {of}", bar.prefix())
        };
        made.iter().filter(|bar| bar.position() > 0).map(one).collect::<Vec<_>>().join(", ")
    }

    pub fn clear(&self) {
        // What cannot be cleared is a terminal that went away.
        self.bars.clear().unwrap_or_else(|error| tracing::debug!(%error, "clear the bars"));
    }
}
