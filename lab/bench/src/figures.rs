//! What was measured, for people as a table and for programs as JSON.

use std::fmt;
use std::io::IsTerminal;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use indicatif::HumanCount;
use serde::Serialize;

use super::machine::Machine;

/// Width of the table where there is no terminal, in characters.
const WIDTH: u16 = 150;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    IncrementsPerSecond,
    RowsPerSecond,
    Nanoseconds,
    Milliseconds,
    Seconds,
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Unit::IncrementsPerSecond => format!("{} incr/s", HumanCount(value as u64)),
            Unit::RowsPerSecond => format!("{} rows/s", HumanCount(value as u64)),
            Unit::Nanoseconds => format!("{value:.1} ns"),
            Unit::Milliseconds => format!("{value:.0} ms"),
            Unit::Seconds => format!("{value:.2} s"),
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Unit::IncrementsPerSecond | Unit::RowsPerSecond)
    }
}

/// What a figure is held against: measured in the same run, in the same unit.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Yardstick {
    pub(crate) what: String,
    pub(crate) value: f64,
    /// CPU of the yardstick for each increment or row, in microseconds, where it was measured.
    pub(crate) cpu_us: Option<f64>,
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Figure {
    pub(crate) bench: &'static str,
    pub(crate) case: String,
    pub(crate) value: f64,
    pub(crate) unit: Unit,
    pub(crate) yardstick: Option<Yardstick>,
    /// CPU of the measured process for each increment or row, in microseconds.
    pub(crate) cpu_us: Option<f64>,
    /// The most memory that it had resident.
    pub(crate) peak_bytes: Option<u64>,
    /// Other numbers, by name.
    pub(crate) details: Vec<(&'static str, String)>,
    /// What was counted is right.
    pub(crate) sound: bool,
}

impl Figure {
    pub(crate) fn new(
        bench: &'static str,
        case: impl Into<String>,
        value: f64,
        unit: Unit,
    ) -> Figure {
        Figure {
            bench,
            case: case.into(),
            value,
            unit,
            yardstick: None,
            cpu_us: None,
            peak_bytes: None,
            details: Vec::new(),
            sound: true,
        }
    }

    pub(crate) fn beside(mut self, what: impl Into<String>, value: f64) -> Figure {
        self.yardstick = Some(Yardstick { what: what.into(), value, cpu_us: None });
        self
    }

    /// The CPU of the yardstick, which must be there already.
    pub(crate) fn beside_cpu_us(mut self, cpu_us: f64) -> Figure {
        self.yardstick.as_mut().expect("the figure has a yardstick").cpu_us = Some(cpu_us);
        self
    }

    pub(crate) fn cpu_us(mut self, cpu_us: f64) -> Figure {
        self.cpu_us = Some(cpu_us);
        self
    }

    pub(crate) fn peak_bytes(mut self, peak_bytes: u64) -> Figure {
        self.peak_bytes = Some(peak_bytes);
        self
    }

    pub(crate) fn detail(mut self, name: &'static str, value: impl Into<String>) -> Figure {
        self.details.push((name, value.into()));
        self
    }

    pub(crate) fn sound(mut self, sound: bool) -> Figure {
        self.sound &= sound;
        self
    }

    /// Not sound if something was `wrong`, which is then told as a detail.
    pub(crate) fn verified(self, wrong: Option<String>) -> Figure {
        match wrong {
            None => self,
            Some(wrong) => self.sound(false).detail("wrong", wrong),
        }
    }

    /// How much of the yardstick's speed it has: more is better, whatever the unit.
    fn ratio(&self) -> Option<f64> {
        let yardstick = self.yardstick.as_ref()?;
        if self.unit.more_is_better() {
            divided(self.value, yardstick.value)
        } else {
            divided(yardstick.value, self.value)
        }
    }

    /// How many times its own CPU the yardstick needed for the same: more is better.
    fn cpu_ratio(&self) -> Option<f64> {
        divided(self.yardstick.as_ref()?.cpu_us?, self.cpu_us?)
    }
}

fn divided(over: f64, under: f64) -> Option<f64> {
    (under > 0.0).then(|| over / under)
}

#[derive(Serialize)]
pub(crate) struct Report<'a> {
    pub(crate) machine: &'a Machine,
    pub(crate) figures: &'a [Figure],
    /// Benches that could not be finished, and why.
    pub(crate) failures: &'a [(&'static str, String)],
}

impl Report<'_> {
    fn table(&self) -> Table {
        let mut table = Table::new();
        table
            .load_style(presets::UTF8_FULL_CONDENSED)
            .set_content_arrangement(ContentArrangement::Dynamic);
        if !std::io::stdout().is_terminal() {
            table.set_width(WIDTH);
        }
        table.set_header([
            "bench",
            "case",
            "measured",
            "yardstick",
            "",
            "speed",
            "CPU each",
            "CPU ratio",
            "peak",
        ]);
        for figure in self.figures {
            let yardstick = figure.yardstick.as_ref();
            table.add_row([
                figure.bench.to_owned(),
                figure.case.clone(),
                figure.unit.show(figure.value),
                yardstick.map_or_else(String::new, |yardstick| figure.unit.show(yardstick.value)),
                yardstick.map_or_else(String::new, |yardstick| yardstick.what.clone()),
                figure.ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}×")),
                figure.cpu_us.map_or_else(String::new, |cpu| format!("{cpu:.3} µs")),
                figure.cpu_ratio().map_or_else(String::new, |ratio| format!("{ratio:.2}×")),
                figure.peak_bytes.map_or_else(String::new, |bytes| format!("{} MiB", bytes >> 20)),
            ]);
        }
        for column in [2, 3, 5, 6, 7, 8] {
            let column = table.column_mut(column).expect("the header has as many");
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.machine, self.table())?;
        for figure in
            self.figures.iter().filter(|figure| !figure.details.is_empty() || !figure.sound)
        {
            write!(f, "\n\n{}: {}", figure.bench, figure.case)?;
            if !figure.sound {
                write!(f, "\n  THE COUNTS ARE NOT RIGHT")?;
            }
            for (name, value) in &figure.details {
                write!(f, "\n  {name}: {value}")?;
            }
        }
        for (bench, reason) in self.failures {
            write!(f, "\n\n{bench}: not measured: {reason}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_says_how_fast_it_is_whatever_the_unit() {
        let rate = Figure::new("b", "c", 50.0, Unit::RowsPerSecond).beside("y", 100.0);
        let time = Figure::new("b", "c", 50.0, Unit::Nanoseconds).beside("y", 100.0);
        assert_eq!((rate.ratio(), time.ratio()), (Some(0.5), Some(2.0)));
        assert_eq!(Figure::new("b", "c", 0.0, Unit::Nanoseconds).beside("y", 1.0).ratio(), None);
        assert_eq!(rate.clone().cpu_us(2.0).cpu_ratio(), None);
        assert_eq!(rate.cpu_us(2.0).beside_cpu_us(5.0).cpu_ratio(), Some(2.5));
    }
}
