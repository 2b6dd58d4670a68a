//! What a person sees while the stack comes up: a line a part.
//!
//! On a terminal these are bars and spinners that redraw themselves; elsewhere (a log, CI) each
//! step is one line.

use std::{fmt, io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

const TICK: Duration = Duration::from_millis(120);

/// None where there is no terminal.
#[derive(Debug, Clone)]
pub struct Progress(Option<MultiProgress>);

impl Progress {
    /// Bars where standard error is a terminal, lines where it is not.
    pub fn auto() -> Progress {
        Self::auto_in(&MultiProgress::new())
    }

    /// The same among the caller's own bars.
    pub fn auto_in(bars: &MultiProgress) -> Progress {
        Progress(std::io::stderr().is_terminal().then(|| bars.clone()))
    }

    pub fn silent() -> Progress {
        Progress(Some(MultiProgress::with_draw_target(ProgressDrawTarget::hidden())))
    }

    /// One line of its own for one piece of work.
    pub fn task(&self, name: &str) -> Task {
        let bar = self.0.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::no_length().with_finish(ProgressFinish::Abandon));
            bar.set_style(style("{spinner} {prefix:<9} {wide_msg}"));
            bar.set_prefix(name.to_owned());
            bar.enable_steady_tick(TICK);
            bar
        });
        Task { name: name.to_owned(), bar }
    }
}

#[derive(Debug)]
pub struct Task {
    name: String,
    bar: Option<ProgressBar>,
}

impl Task {
    /// The work has come to this step.
    pub fn step(&self, message: impl fmt::Display) {
        let Some(bar) = &self.bar else { return self.line(message) };
        bar.set_style(style("{spinner} {prefix:<9} {wide_msg}"));
        // A bar has one line.
        bar.set_message(message.to_string().replace('\n', " "));
    }

    /// The step moves bytes: how many in all, if that is known.
    pub fn transfer(&self, message: impl fmt::Display, total_bytes: Option<u64>) {
        let Some(bar) = &self.bar else { return self.line(message) };
        bar.reset();
        bar.set_message(message.to_string());
        match total_bytes {
            Some(total) => {
                bar.set_length(total);
                bar.set_style(style("{spinner} {prefix:<9} {msg} {bar:24} {bytes}/{total_bytes}"));
            }
            None => {
                bar.unset_length();
                bar.set_style(style("{spinner} {prefix:<9} {msg} {bytes}"));
            }
        }
    }

    pub fn transferred(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bar.length().map_or(bytes, |total| bytes.min(total)));
        }
    }

    /// Done; the line stays.
    pub fn finish(&self, message: impl fmt::Display) {
        let Some(bar) = &self.bar else { return self.line(message) };
        bar.set_style(style("✓ {prefix:<9} {wide_msg}"));
        bar.finish_with_message(message.to_string());
    }

    fn line(&self, message: impl fmt::Display) {
        eprintln!("{}: {message}", self.name);
    }
}

fn style(template: &'static str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the template is a constant, and a test reads each")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid_and_a_transfer_never_runs_over_its_total() {
        let task = Progress::silent().task("broker");
        let bar = task.bar.as_ref().expect("it has a bar");
        task.step("waits");
        task.transfer("downloads", Some(100));
        task.transferred(130);
        assert_eq!((bar.position(), bar.length()), (100, Some(100)));
        task.transfer("downloads", None);
        task.transferred(130);
        assert_eq!((bar.position(), bar.length()), (130, None));
        task.finish("answers");
        assert!(bar.is_finished());
    }
}
