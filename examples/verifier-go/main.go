// The verifier replays the topic of increments and compares every counter with ClickHouse. It was
// written from docs/format.md, and has no code of Tally's.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

var (
	brokers    = flag.String("brokers", "127.0.0.1:9092", "Kafka's brokers, joined by commas")
	increments = flag.String("increments", "increments", "the topic of increments")
	rejected   = flag.String("rejected", "increments.rejected", "the topic of rejected messages")
	registry   = flag.String("registry", "http://127.0.0.1:8081/apis/ccompat/v7", "the registry")
	clickhouse = flag.String("clickhouse", "http://127.0.0.1:8123", "ClickHouse, over HTTP")
	database   = flag.String("database", "tally", "the database with the table counts")
	user       = flag.String("user", "default", "ClickHouse's user")
	password   = flag.String("password", "", "the user's password")
	show       = flag.Int("show", 20, "how many differences to print")
)

var rules struct { // What the table's comment says.
	bucketSeconds, maxFutureSeconds, horizonOffsets, maxIDs int64
	idsWithin                                               string
}

func main() {
	flag.Parse()
	debug.SetGCPercent(400) // Nearly all of the heap stays.
	began, all := time.Now(), partitions{}
	readTable(all)
	starts, ends := bounds(*increments)
	for number := range ends {
		all.get(number)
	}
	readRejections(all)
	var running sync.WaitGroup
	for number, p := range all {
		running.Go(func() { p.readStore(number) })
	}
	running.Wait()
	replays := time.Now()
	for number, p := range all {
		running.Go(func() {
			p.doubt = p.whyUnreadable(starts[number].Offset, ends[number].Offset)
			if p.doubt == "" {
				read(*increments, number, 0, p.position, p.take)
			}
		})
	}
	running.Wait()
	os.Exit(report(all, began, time.Since(replays)))
}

// check ends the program if something cannot be read.
func check(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "could not check: %s: %v\n", what, err)
		os.Exit(2)
	}
}

// report prints what was found and returns the exit code: 0 if all agrees, 1 if something differs,
// 2 if something is not proven.
func report(all partitions, began time.Time, replay time.Duration) int {
	var wrong, unproven, counted, differences int
	for _, number := range slices.Sorted(maps.Keys(all)) {
		p := all[number]
		verdict, found := "agrees", []string{}
		if p.doubt != "" {
			verdict, unproven = "is NOT PROVEN: "+p.doubt, unproven+1
		} else if found = p.compare(); len(found) > 0 {
			verdict, wrong = "DIFFERS", wrong+1
		}
		fmt.Printf("partition %d up to offset %d, %d cells, %v: %s\n",
			number, p.position, len(p.cells), p.account, verdict)
		for _, difference := range found {
			if differences++; differences <= *show {
				fmt.Printf("partition %d: %s\n", number, difference)
			}
		}
		counted += p.account["increments.counted"]
	}
	fmt.Printf("%d partitions, %d increments in %.1f s, replayed in %.1f s of it: %d differ, "+
		"in %d places, %d not proven\n", len(all), counted, time.Since(began).Seconds(),
		replay.Seconds(), wrong, differences, unproven)
	if wrong > 0 {
		return 1
	} else if unproven > 0 {
		return 2
	}
	return 0
}

const tables = `SELECT toInt64(partition), toInt64(count()), '', ifNull((SELECT comment FROM system.tables
	WHERE database = currentDatabase() AND name = 'counts'), '') FROM counts GROUP BY partition`

func readTable(all partitions) {
	query(tables, 2, func(numbers []int64, texts [2][]byte) {
		all.get(int32(numbers[0])).rows = int(numbers[1])
		_, err := fmt.Sscanf(string(texts[1])+" end", "tally: format=2 bucket_seconds=%d "+
			"max_future_seconds=%d horizon_offsets=%d max_ids=%d ids_within=%s end",
			&rules.bucketSeconds, &rules.maxFutureSeconds, &rules.horizonOffsets,
			&rules.maxIDs, &rules.idsWithin)
		check("rules that are known are not in the table's comment, "+string(texts[1]), err)
	})
}

// stored is one query, and so one snapshot, of the ledger and the counts of a partition.
const stored = `SELECT toInt64(toUInt32(bucket)), sum_high, sum_low, events, toInt64(high),
	toString(namespace), key FROM counts
WHERE partition = %d AND (namespace != '__tally' OR NOT startsWith(key, 'batch:'))`

func (p *partition) readStore(number int32) {
	p.at, p.cells = make(map[string]int, p.rows), make([]cell, 0, p.rows)
	query(fmt.Sprintf(stored, number), 5, func(numbers []int64, texts [2][]byte) {
		of := p.ledger[string(texts[1])]
		if string(texts[0]) != "__tally" {
			of = &cellOf(p, texts[0], texts[1], uint32(numbers[0])).stored
		}
		if of != nil {
			of.add(numbers[1], uint64(numbers[2]), numbers[3])
		}
		if of == p.ledger["increments"] {
			p.position = max(p.position, numbers[4])
		} else if of == p.ledger["deltas"] {
			p.batches = max(p.batches, numbers[4])
		}
	})
}

// query takes each row of an answer of ClickHouse: as many numbers of 64 bits, and two texts.
func query(sql string, many int, take func(numbers []int64, texts [2][]byte)) {
	// ClickHouse answers once it has all rows, so that no error comes in their midst.
	options := url.Values{"database": {*database}, "wait_end_of_query": {"1"},
		"default_format": {"RowBinary"}, "user": {*user}, "password": {*password}}
	response, err := http.Post(*clickhouse+"/?"+options.Encode(), "", strings.NewReader(sql))
	check("ClickHouse", err)
	if response.StatusCode != http.StatusOK {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		check("ClickHouse", errors.New(string(said)))
	}
	numbers, texts := make([]int64, many), [2][]byte{}
	for rows := bufio.NewReaderSize(response.Body, 1<<20); ; take(numbers, texts) {
		err := binary.Read(rows, binary.LittleEndian, numbers)
		if err == io.EOF {
			return
		}
		for i, text := range texts {
			length, err1 := binary.ReadUvarint(rows)
			texts[i] = slices.Grow(text[:0], int(length))[:length]
			_, err2 := io.ReadFull(rows, texts[i])
			err = errors.Join(err, err1, err2)
		}
		check("the table counts", err)
	}
}

func connect(options ...kgo.Opt) *kgo.Client {
	client, err := kgo.NewClient(append(options, kgo.SeedBrokers(strings.Split(*brokers, ",")...))...)
	check("Kafka", err)
	return client
}

// bounds returns the first and the next offset of each partition.
func bounds(topic string) (starts, ends map[int32]kadm.ListedOffset) {
	client := connect()
	defer client.Close()
	first, err1 := kadm.NewClient(client).ListStartOffsets(context.Background(), topic)
	next, err2 := kadm.NewClient(client).ListEndOffsets(context.Background(), topic)
	check("topic "+topic, errors.Join(err1, err2, first.Error(), next.Error()))
	return first[topic], next[topic]
}

// read calls take with the committed messages of a partition, from one offset up to another. Just
// before that one is a message, or the marker of a transaction.
func read(topic string, partition int32, from, to int64, take func(*kgo.Record)) {
	at := map[int32]kgo.Offset{partition: kgo.NewOffset().At(from)}
	client := connect(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.FetchMaxPartitionBytes(4<<20),
		kgo.FetchMaxWait(100*time.Millisecond))
	defer client.Close()
	for what := fmt.Sprintf("topic %s, partition %d", topic, partition); from < to; {
		ctx, stop := context.WithTimeout(context.Background(), time.Minute)
		fetches := client.PollFetches(ctx)
		stop()
		check(what, fetches.Err())
		fetches.EachRecord(func(r *kgo.Record) {
			if from = r.Offset + 1; from <= to && !r.Attrs.IsControl() {
				take(r)
			}
		})
	}
}

// readRejections reads which messages were rejected, and why. It waits for open transactions: one
// whose batch is stored may not have its marker on this topic yet.
func readRejections(all partitions) {
	starts, ends := bounds(*rejected)
	for number := range ends {
		from, to := starts[number].Offset, ends[number].Offset
		read(*rejected, number, from, to, func(r *kgo.Record) {
			headers := map[string]string{}
			for _, header := range r.Headers {
				headers[header.Key] = string(header.Value)
			}
			of, err1 := strconv.ParseUint(headers["tally.partition"], 10, 31)
			offset, err2 := strconv.ParseInt(headers["tally.offset"], 10, 64)
			// What no aggregator wrote says nothing.
			if p := all[int32(of)]; p != nil && err1 == nil && err2 == nil {
				p.rejections[offset] = headers["tally.reason"]
			}
		})
	}
}
