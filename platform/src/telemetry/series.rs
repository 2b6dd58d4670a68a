//! Reading what a service says at `/metrics`.

/// The sum of a metric's series whose line contains `labels`; 0 where there is none yet. An error
/// holds the line that was not understood.
pub fn sum_of_series(text: &str, name: &str, labels: &str) -> Result<f64, String> {
    Ok(series(text, name, labels)?.into_iter().sum())
}

/// The values of those series, each.
pub fn series(text: &str, name: &str, labels: &str) -> Result<Vec<f64>, String> {
    let series = text.lines().filter(|line| !line.starts_with('#')).filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && line.contains(labels)
    });
    series.map(value).collect()
}

fn value(line: &str) -> Result<f64, String> {
    let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
    value.ok_or_else(|| format!("not a series: {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_is_summed_over_its_own_series_only() {
        let text = "# HELP a_total x\na_total{p=\"0\",r=\"x\"} 2\n\
                    a_total{p=\"1\",r=\"x\"} 3\na_total{r=\"y\"} 9\n\
                    a_total_more{r=\"x\"} 99\n";
        assert_eq!(sum_of_series(text, "a_total", "r=\"x\""), Ok(5.0));
        assert_eq!(sum_of_series(text, "a_total", ""), Ok(14.0));
        assert_eq!(sum_of_series(text, "b_total", ""), Ok(0.0));
        assert_eq!(series(text, "a_total", "r=\"x\""), Ok(vec![2.0, 3.0]));
        assert!(sum_of_series("a_total x", "a_total", "").is_err());
    }
}
