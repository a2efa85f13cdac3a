/** What work costs this thread: unlike the time that passes, it does not grow because other programs want the machine too. */

/** Milliseconds of processor time that `work`, which is done when it returns, takes of this thread. */
export function cpuMs(work: () => void): number {
  const before = process.threadCpuUsage();
  work();
  const { user, system } = process.threadCpuUsage(before);
  return (user + system) / 1000;
}
