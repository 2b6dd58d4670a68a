//! What a person sees while the stack comes up: a line a part.
//!
//! On a terminal these are bars and spinners that redraw themselves; elsewhere (a log, CI) each
//! step is one line.

use std::{fmt, io::IsTerminal, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressFinish, ProgressStyle};

const TICK: Duration = Duration::from_millis(120);

#[derive(Debug, Clone)]
pub struct Progress(Output);

#[derive(Debug, Clone)]
enum Output {
    Bars(MultiProgress),
    Lines,
    Silent,
}

impl Progress {
    /// Bars where standard error is a terminal, lines where it is not.
    pub fn auto() -> Progress {
        Self::auto_in(&MultiProgress::new())
    }

    /// The same among the caller's own bars.
    pub fn auto_in(bars: &MultiProgress) -> Progress {
        if std::io::stderr().is_terminal() {
            Self::bars(bars.clone())
        } else {
            Progress(Output::Lines)
        }
    }

    fn bars(bars: MultiProgress) -> Progress {
        Progress(Output::Bars(bars))
    }

    pub fn silent() -> Progress {
        Progress(Output::Silent)
    }

    /// One line of its own for one piece of work.
    pub fn task(&self, name: &str) -> Task {
        let output = match &self.0 {
            Output::Bars(bars) => {
                let bar = bars.add(ProgressBar::no_length().with_finish(ProgressFinish::Abandon));
                bar.set_style(style("{spinner} {prefix:<9} {wide_msg}"));
                bar.set_prefix(name.to_owned());
                bar.enable_steady_tick(TICK);
                TaskOutput::Bar(bar)
            }
            Output::Lines => TaskOutput::Lines,
            Output::Silent => TaskOutput::Silent,
        };
        Task { name: name.to_owned(), output }
    }
}

#[derive(Debug)]
pub struct Task {
    name: String,
    output: TaskOutput,
}

#[derive(Debug)]
enum TaskOutput {
    Bar(ProgressBar),
    Lines,
    Silent,
}

impl Task {
    /// The work has come to this step.
    pub fn step(&self, message: impl fmt::Display) {
        match &self.output {
            TaskOutput::Bar(bar) => {
                bar.set_style(style("{spinner} {prefix:<9} {wide_msg}"));
                // A bar has one line.
                bar.set_message(message.to_string().replace('\n', " "));
            }
            TaskOutput::Lines => self.line(message),
            TaskOutput::Silent => {}
        }
    }

    /// The step moves bytes: how many in all, if that is known.
    pub fn transfer(&self, message: impl fmt::Display, total_bytes: Option<u64>) {
        match &self.output {
            TaskOutput::Bar(bar) => {
                bar.reset();
                bar.set_message(message.to_string());
                match total_bytes {
                    Some(total) => {
                        bar.set_length(total);
                        bar.set_style(style(
                            "{spinner} {prefix:<9} {msg} {bar:24} {bytes}/{total_bytes}",
                        ));
                    }
                    None => {
                        bar.unset_length();
                        bar.set_style(style("{spinner} {prefix:<9} {msg} {bytes}"));
                    }
                }
            }
            TaskOutput::Lines => self.line(message),
            TaskOutput::Silent => {}
        }
    }

    pub fn transferred(&self, bytes: u64) {
        if let TaskOutput::Bar(bar) = &self.output {
            bar.set_position(bar.length().map_or(bytes, |total| bytes.min(total)));
        }
    }

    /// Done; the line stays.
    pub fn finish(&self, message: impl fmt::Display) {
        match &self.output {
            TaskOutput::Bar(bar) => {
                bar.set_style(style("✓ {prefix:<9} {wide_msg}"));
                bar.finish_with_message(message.to_string());
            }
            TaskOutput::Lines => self.line(message),
            TaskOutput::Silent => {}
        }
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
    use indicatif::ProgressDrawTarget;

    use super::*;

    #[test]
    fn every_template_is_valid_and_a_transfer_never_runs_over_its_total() {
        let progress =
            Progress::bars(MultiProgress::with_draw_target(ProgressDrawTarget::hidden()));
        let task = progress.task("broker");
        let TaskOutput::Bar(bar) = &task.output else { panic!("{task:?}") };
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
