//! What a topic's settings must be, and what is to be said where they are not.

/// How far a topic that is there may differ from what is required.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Breach {
    /// `init` refuses the topic: what Tally promises would not hold.
    Refused,
    /// `init` says so and goes on.
    Told,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Exactly(&'static str),
    AtLeast(u64),
    /// In milliseconds; -1 is for ever.
    LastingAtLeast(u64),
}

/// One setting of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requirement {
    pub(super) setting: &'static str,
    pub(super) want: Want,
    pub(super) why: String,
    pub(super) breach: Breach,
}

impl Requirement {
    pub(super) fn refused(setting: &'static str, want: Want, why: &str) -> Requirement {
        Requirement { setting, want, why: why.to_owned(), breach: Breach::Refused }
    }

    pub(super) fn told(setting: &'static str, want: Want, why: &str) -> Requirement {
        Requirement { breach: Breach::Told, ..Requirement::refused(setting, want, why) }
    }

    /// What a new topic is made with.
    pub(super) fn value(&self) -> String {
        match self.want {
            Want::Exactly(value) => value.to_owned(),
            Want::AtLeast(least) | Want::LastingAtLeast(least) => least.to_string(),
        }
    }

    pub(super) fn is_met_by(&self, have: Option<&str>) -> bool {
        let number = have.and_then(|have| have.parse::<i64>().ok());
        let is_at_least = |least: u64| {
            number.is_some_and(|number| u64::try_from(number).is_ok_and(|have| have >= least))
        };
        match self.want {
            Want::Exactly(value) => have == Some(value),
            Want::AtLeast(least) => is_at_least(least),
            Want::LastingAtLeast(least) => number == Some(-1) || is_at_least(least),
        }
    }

    /// The difference, and the command that mends it.
    pub(super) fn difference(&self, bootstrap: &str, topic: &str, have: Option<&str>) -> String {
        let Requirement { setting, why, .. } = self;
        let (have, value) = (have.unwrap_or("not told"), self.value());
        let or_more = match self.want {
            Want::Exactly(_) => "",
            Want::AtLeast(_) => " or more",
            Want::LastingAtLeast(_) => " or more, or to -1",
        };
        format!(
            "its {setting} is {have}, but {why}: set it to {value}{or_more} \
             (kafka-configs.sh --bootstrap-server {bootstrap} --alter --entity-type topics \
             --entity-name {topic} --add-config {setting}={value})"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_more_than_enough_is_enough() {
        for (want, enough, too_little) in [
            (Want::Exactly("-1"), vec!["-1"], vec!["604800000", "0", ""]),
            (Want::AtLeast(2), vec!["2", "3"], vec!["1", "0", "-1", "two"]),
            (Want::LastingAtLeast(1000), vec!["1000", "1001", "-1"], vec!["999", "0", "-2"]),
        ] {
            let requirement = Requirement::refused("setting", want, "so");
            let is_met = |have: &&str| requirement.is_met_by(Some(have));
            assert!(enough.iter().all(is_met), "{want:?}");
            assert!(!too_little.iter().any(is_met), "{want:?}");
            assert!(!requirement.is_met_by(None), "{want:?}");
            assert!(requirement.is_met_by(Some(&requirement.value())), "{want:?}");
        }
    }

    #[test]
    fn a_difference_names_what_is_there_what_is_wanted_why_and_the_command() {
        let requirement = Requirement::told("retention.ms", Want::LastingAtLeast(5), "it is read");
        assert_eq!(
            requirement.difference("kafka:9092", "deltas", Some("4")),
            "its retention.ms is 4, but it is read: set it to 5 or more, or to -1 \
             (kafka-configs.sh --bootstrap-server kafka:9092 --alter --entity-type topics \
             --entity-name deltas --add-config retention.ms=5)"
        );
    }
}
