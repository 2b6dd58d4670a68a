//! Artifacts from a Maven repository: a set of jars with all that they depend on, or one tarball.
//!
//! Each attempt has a local repository of its own: nothing that is broken there can spoil the next
//! attempt, the user's `~/.m2` does not grow, and its size is the progress. Mirrors and proxies in
//! the user's `settings.xml` count.

use std::{ffi::OsString, fs, path::Path};

use anyhow::Context;
use tokio::{process::Command, task::spawn_blocking};

use super::{
    super::{error::file, progress::Task},
    Scratch, Transient, checksum,
    tarball::Tarball,
    tool::Run,
};

const PLUGIN: &str = "org.apache.maven.plugins:maven-dependency-plugin";

#[derive(Debug, Clone, Copy)]
pub(crate) struct MavenJars {
    pub what: &'static str,
    pub version: &'static str,
    /// `group:artifact:version`
    pub roots: &'static [&'static str],
    /// What `sha256sum` prints for all the jars.
    pub manifest: &'static str,
}

/// One `tar.gz`, of which some members are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MavenTarball {
    pub what: &'static str,
    pub version: &'static str,
    /// `group:artifact:version:packaging:classifier`
    pub coordinates: &'static str,
    pub sha256: &'static str,
    pub size_bytes: u64,
    pub members: &'static [&'static str],
}

impl MavenJars {
    pub(super) async fn download(&self, scratch: &Scratch, task: &Task) -> anyhow::Result<()> {
        task.transfer(format_args!("downloads {} {}", self.what, self.version), None);
        let project = scratch.work.join("pom.xml");
        fs::write(&project, self.project()).with_context(file("write", &project))?;
        let repository = scratch.work.join("repository");
        let mut command = maven(&scratch.work, &repository);
        command
            .arg(format!("{PLUGIN}:3.8.1:copy-dependencies"))
            .arg("-DincludeScope=runtime")
            .arg(define("outputDirectory", &scratch.whole));
        let run = Run { what: self.what, program: "mvn", command, watch: &repository };
        run.finish(task).await?;

        task.step(format_args!("verifies {} {}", self.what, self.version));
        let folder = scratch.whole.clone();
        let digests =
            spawn_blocking(move || checksum::of_folder(&folder)).await.expect("reads files only");
        let digests = digests.with_context(file("read", &scratch.whole))?;
        checksum::check_manifest(self.manifest, &digests)
            .map_err(|reason| Transient { what: self.what, reason })?;
        Ok(())
    }

    fn project(&self) -> String {
        let dependencies: String = self
            .roots
            .iter()
            .map(|coordinates| {
                let mut parts = coordinates.split(':');
                let mut part = || parts.next().expect("the coordinates are group:artifact:version");
                let (group, artifact, version) = (part(), part(), part());
                format!(
                    "    <dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
                     <version>{version}</version></dependency>\n"
                )
            })
            .collect();
        format!(
            "<project xmlns=\"http://maven.apache.org/POM/4.0.0\">\n  \
               <modelVersion>4.0.0</modelVersion>\n  \
               <groupId>tally</groupId><artifactId>jars</artifactId><version>1</version>\n  \
               <dependencies>\n{dependencies}  </dependencies>\n\
             </project>\n"
        )
    }
}

impl MavenTarball {
    pub(super) async fn download(&self, scratch: &Scratch, task: &Task) -> anyhow::Result<()> {
        task.transfer(
            format_args!("downloads {} {}", self.what, self.version),
            Some(self.size_bytes),
        );
        let repository = scratch.work.join("repository");
        let mut command = maven(&scratch.work, &repository);
        // Later versions of `copy` insist on the parent of the artifact's own project file; 2.8
        // copies just the file.
        command
            .arg(format!("{PLUGIN}:2.8:copy"))
            .arg(format!("-Dartifact={}", self.coordinates))
            .arg(define("outputDirectory", &scratch.work));
        let group = self.coordinates.split(':').next().expect("split gives at least one part");
        let watch = repository.join(group.replace('.', "/"));
        let run = Run { what: self.what, program: "mvn", command, watch: &watch };
        run.finish(task).await?;
        let tarball =
            Tarball { what: self.what, sha256: self.sha256, top: None, members: self.members };
        tarball.unpack(scratch, task).await
    }
}

fn maven(folder: &Path, repository: &Path) -> Command {
    let mut command = Command::new("mvn");
    command
        .current_dir(folder)
        .args(["--batch-mode", "--quiet", "--strict-checksums"])
        .arg(define("maven.repo.local", repository));
    command
}

fn define(name: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(format!("-D{name}="));
    argument.push(path);
    argument
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_names_each_root_with_its_version() {
        let jars = MavenJars {
            what: "Kafka",
            version: "4",
            roots: &["org.apache.kafka:kafka_2.13:4.3.1", "a:b:1"],
            manifest: "",
        };
        let project = jars.project();
        assert!(project.contains(
            "<groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId>\
             <version>4.3.1</version>"
        ));
        assert!(
            project.contains("<groupId>a</groupId><artifactId>b</artifactId><version>1</version>")
        );
        assert!(project.ends_with("</project>\n"));
    }
}
